# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""HTTP/1.1 for many connections in one thread: loop, parser, connections, router."""
