# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The client's transfers over simulated time, a simulated server and a simulated disk."""
