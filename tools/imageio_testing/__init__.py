# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Helpers for tests, demonstrations and measurements. Never installed."""
