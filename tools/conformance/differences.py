# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""In what ovirt-imageio 2.5.1 departs from the rules, by test, and what of that a run has to show."""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """How 2.5.1 departs from a rule.

    Attributes:
        why: for the reader.
        seen: a regular expression. One of the faults of the run has to match it, or the reader would be told a guess.
    """

    why: str
    seen: str


_NO_HEAD = Difference("2.5.1 has no HEAD: 405.", r"the status is 405, expected (200|416)")
_NO_CHUNKS = Difference("2.5.1 takes no chunked uploads: 400.", r"the status is 400|Content-Length header is required")
_LATE_CANCEL = "2.5.1 looks for a cancelled ticket between pieces only: one that stands still runs on for 60 s."
_BODY_LEFT = "2.5.1 leaves a body that it did not expect in the stream, and reads it as a request."
_WHOLE_DIGEST = Difference("2.5.1 digests the whole image, whatever the ticket's size is.", r"the checksum is f01ebf86")
_WHOLE_LIST = "2.5.1 lists the extents of the whole image, whatever the ticket's size is."
_ONLY_PATHS = Difference("2.5.1 knows no request target but a path: 404.", r"the status is 404")
_NO_OBJECT = Difference("2.5.1 answers 500 to documents that are no objects.", r"the status is 500, expected 400")
_ANY_LENGTH = Difference("2.5.1 takes documents of any length.", r"the status is 200, expected 413")
_WRONG_KEY = Difference(
    "2.5.1 takes some wrong values, and does not name the key of others.", r"the status is 200, expected 400"
)
_ABORTS = Difference(
    "2.5.1 closes the connection after a refused upload, and the client may see a broken pipe.",
    r"ConnectionEnded|BrokenPipe|ConnectionReset|SSLEOF",
)
_NO_ALLOW = Difference("2.5.1 sends no Allow.", r"Allow is None")

DIFFERENCES: dict[str, Difference] = {
    "test_cancel.py::test_cancelled_get": Difference(_LATE_CANCEL, r"TimeoutError"),
    "test_cancel.py::test_cancelled_put": Difference(_LATE_CANCEL, r"TimeoutError"),
    "test_cancel.py::test_replaced_while_running": Difference(
        f"{_LATE_CANCEL} A ticket that is replaced is not cancelled.", r"TimeoutError"
    ),
    "test_checksum.py::test_all_listed_algorithms": Difference(
        "2.5.1 lists shake_128 and shake_256, which fail: 500.", r"the status is 500"
    ),
    "test_checksum.py::test_no_bytes": _WHOLE_DIGEST,
    "test_checksum.py::test_ticket_bounds_checksum": _WHOLE_DIGEST,
    "test_checksum.py::test_unknown_algorithm": Difference(
        "2.5.1 answers 500 to algorithms of no fixed length.", r"the status is 500"
    ),
    "test_connections.py::test_asterisk": _ONLY_PATHS,
    "test_connections.py::test_close": Difference(
        "2.5.1 closes without saying so in a header.", r"Connection is absent"
    ),
    "test_connections.py::test_http_1_0_keep_alive": Difference(
        "2.5.1 keeps the connection without saying so in a header.", r"does not say keep-alive"
    ),
    "test_connections.py::test_kept_after_every_status": _ABORTS,
    "test_connections.py::test_pipelined": _NO_HEAD,
    "test_extents.py::test_head": _NO_HEAD,
    "test_extents.py::test_no_bytes": Difference(_WHOLE_LIST, r"the document is .*6292992"),
    "test_extents.py::test_ticket_bounds_extents": Difference(_WHOLE_LIST, r"the extents end at 6292992"),
    "test_get.py::test_absolute_target": _ONLY_PATHS,
    "test_get.py::test_any_filename": Difference(
        "2.5.1 writes the name as it is: other headers can be added by it.", r"X-Injected is 'yes'"
    ),
    "test_get.py::test_body_of_get": Difference(_BODY_LEFT, r"the status is 405"),
    "test_get.py::test_head": _NO_HEAD,
    "test_get.py::test_head_of_error": _NO_HEAD,
    "test_get.py::test_if_range": Difference("2.5.1 does not know If-Range: the range is sent.", r"the status is 206"),
    "test_get.py::test_impossible_range": Difference(
        "2.5.1 does not tell the size. It serves some of these ranges, and answers 500 to others.",
        r"Content-Range is absent",
    ),
    "test_get.py::test_impossible_range_with_every_storage": Difference(
        "2.5.1 writes a Content-Range that ends before it begins.", r"bytes 6292992-6292991/6292992"
    ),
    "test_get.py::test_not_stored": Difference(
        "2.5.1 does not say that it takes ranges, nor that nothing is to be stored.", r"Accept-Ranges is absent"
    ),
    "test_get.py::test_range": Difference(
        "2.5.1 has no suffix ranges, and knows the unit in small letters only.", r"the status is 416, expected 206"
    ),
    "test_get.py::test_repeated_range": Difference(
        "2.5.1 uses one of several Range fields.", r"the status is 206, expected 416"
    ),
    "test_get.py::test_ticket_bounds_image": Difference(
        "2.5.1 has no suffix ranges, and does not tell the size in a 416.", r"the status is 416, expected 206"
    ),
    "test_get.py::test_unknown_unit": Difference(
        "2.5.1 refuses units that it does not know.", r"the status is 416, expected 200"
    ),
    "test_heads.py::test_body_is_no_request": Difference(_BODY_LEFT, r"the server keeps the connection"),
    "test_heads.py::test_chunked_body_is_no_request": Difference(_BODY_LEFT, r"<!DOCTYPE HTML>"),
    "test_heads.py::test_empty_line_before_request": Difference(
        "2.5.1 closes the connection at an empty line.", r"ConnectionEnded"
    ),
    "test_heads.py::test_end_within_head": Difference(
        "2.5.1 takes a head that ends early for a request.", r"the answer is b'HTTP/1.1 403"
    ),
    "test_heads.py::test_malformed_head": Difference(
        "2.5.1 repairs what it can understand in some way, and goes on.", r"the status is 403, expected 400"
    ),
    "test_heads.py::test_refused_head": Difference(
        "2.5.1 serves other versions and codings like those it knows.", r"the status is 403, expected 50[15]"
    ),
    "test_patch.py::test_instance": Difference(
        "2.5.1 does not tell whether a flush covers a write.", r"Imageio-Instance is absent"
    ),
    "test_patch.py::test_large_document": _ANY_LENGTH,
    "test_patch.py::test_no_object": _NO_OBJECT,
    "test_patch.py::test_wrong_key": _WRONG_KEY,
    "test_put.py::test_both_lengths": Difference(
        "2.5.1 ignores Transfer-Encoding.", r"the status is 200, expected 400"
    ),
    "test_put.py::test_chunk_extensions_and_trailers": _NO_CHUNKS,
    "test_put.py::test_chunked": _NO_CHUNKS,
    "test_put.py::test_chunked_at_offset": _NO_CHUNKS,
    "test_put.py::test_chunks_past_end": _NO_CHUNKS,
    "test_put.py::test_chunks_that_contradict_range": _NO_CHUNKS,
    "test_put.py::test_compressed": Difference(
        "2.5.1 writes a compressed body as it comes.", r"the status is 200, expected 415"
    ),
    "test_put.py::test_contradicting_last": Difference(
        "2.5.1 does not compare LAST with the length: the data are written.", r"the status is 200, expected 400"
    ),
    "test_put.py::test_empty_chunked": _NO_CHUNKS,
    "test_put.py::test_malformed_chunks": Difference(
        "2.5.1 takes no chunked uploads: 400. What comes then is a request to it.", r"the server keeps the connection"
    ),
    "test_put.py::test_malformed_content_range": Difference(
        "2.5.1 answers 500 to some.", r"the status is 500, expected 400"
    ),
    "test_put.py::test_no_length": Difference("2.5.1 answers 400.", r"the status is 400, expected 411"),
    "test_put.py::test_past_end_of_image": Difference(
        "2.5.1 finds out while it writes to an NBD export: 500.", r"the status is 500, expected 416"
    ),
    "test_put.py::test_refused_expectation": Difference(
        "2.5.1 asks for the body before it looks at the ticket.", r"the status is 100"
    ),
    "test_put.py::test_short_body": Difference(
        "2.5.1 waits for the rest though the client has ended.", r"TimeoutError"
    ),
    "test_put.py::test_storage_that_can_only_be_read": Difference(
        "2.5.1 answers 500 to writes.", r"the status is 500, expected 403"
    ),
    "test_put.py::test_unknown_ticket": _ABORTS,
    "test_resources.py::test_cors": Difference(
        "2.5.1 does not expose the headers that a page needs.", r"Access-Control-Expose-Headers is absent"
    ),
    "test_resources.py::test_cors_on_errors": Difference(
        "2.5.1 lacks CORS headers in errors: a page cannot read why it failed.",
        r"Access-Control-Allow-Origin is absent",
    ),
    "test_resources.py::test_error_tells_no_secrets": Difference(
        "2.5.1 repeats the whole path, decoded.", r"No handler for '/<script>"
    ),
    "test_resources.py::test_method_not_allowed": _NO_ALLOW,
    "test_resources.py::test_no_such_resource": Difference(
        "2.5.1 takes longer paths for those of a ticket.", r"the status is (200|403), expected 404"
    ),
    "test_resources.py::test_other_host_at_control": Difference(
        "2.5.1 does not look at Host.", r"the status is 404, expected 400"
    ),
    "test_resources.py::test_strange_id": Difference(
        "2.5.1 closes the connection without an answer.", r"ConnectionEnded"
    ),
    "test_resources.py::test_unknown_method": Difference("2.5.1 answers 405.", r"the status is 405, expected 501"),
    "test_resources.py::test_web_page_at_control": Difference(
        "2.5.1 does not look at Origin: a web page can add tickets.", r"the status is 404, expected 403"
    ),
    "test_tickets.py::test_large_document": _ANY_LENGTH,
    "test_tickets.py::test_method_not_allowed": _NO_ALLOW,
    "test_tickets.py::test_no_object": _NO_OBJECT,
    "test_tickets.py::test_other_id": Difference(
        "2.5.1 takes the id of the document.", r"the status is 200, expected 400"
    ),
    "test_tickets.py::test_remove": Difference(
        "2.5.1 sends a Content-Length with 204.", r"Content-Length is '0', expected absent"
    ),
    "test_tickets.py::test_remove_closes_idle_connections": Difference(
        "2.5.1 closes them after their inactivity timeout.", r"TimeoutError"
    ),
    "test_tickets.py::test_transferred_by_writing": Difference(
        "2.5.1 counts what is read by a ticket to write, too.", r"transferred is 21000, expected 20000"
    ),
    "test_tickets.py::test_wrong_extend": _WRONG_KEY,
    "test_tickets.py::test_wrong_key": _WRONG_KEY,
}
