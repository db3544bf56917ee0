# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Release one package: python tools/release.py PACKAGE VERSION. See docs/design/releasing.md."""

import sys

from release.cut import main

if __name__ == "__main__":
    sys.exit(main())
