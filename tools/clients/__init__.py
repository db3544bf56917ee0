# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Do the programs of others work with us? Replays of what they send, and of what they read.

Each module replays one program. Its docstring names the source of its facts: repository, file, version.
Requests that a program makes by its own HTTP stack are sent byte by byte here: method, fields, their order, the
form of the body. Programs that use the client library lie in `programs/`, and run in the interpreter of either
generation.

    host:        a host with a daemon of this checkout, or of 2.5.1, set up as its manager does
    wire:        HTTP as Go's net/http, Apache HttpCore and http.client write it
    programs:    programs that use the client library, each a script of its own
    servers:     image servers of other makers, for our client

Every replay runs against this checkout and against 2.5.1. A replay that 2.5.1 fails is wrong, or its
docstring says why.
"""
