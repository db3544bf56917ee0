# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What hostile clients cost the daemon, and everybody else: figures for a page of the documentation."""
