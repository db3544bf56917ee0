# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One job of a client library, run by the interpreter of either implementation.

Prints a JSON object with the seconds it took, without the interpreter's start.
Uses only what both implementations offer.
"""

import json
import sys
import time


def main():
    """Run the job that the arguments name."""
    start = time.monotonic()
    from ovirt_imageio import client

    imported = time.monotonic() - start
    job, *args = sys.argv[1:]
    start = time.monotonic()
    if job == "upload":
        image, url, cafile = args
        client.upload(image, url, cafile)
    elif job == "download":
        image, url, cafile = args
        client.download(url, image, cafile, fmt="raw")
    elif job == "extents":
        url, cafile = args
        with client.ImageioClient(url, cafile) as c:
            list(c.extents())
    print(json.dumps({"wall": time.monotonic() - start, "import": imported}))


if __name__ == "__main__":
    main()
