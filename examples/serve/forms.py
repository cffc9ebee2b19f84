"""Reads the file of a form, as browsers and `curl -F file=@PHOTO` send it (RFC 7578).

The body is in memory and bounded already; this takes time in proportion to its length, once.
"""

import email
import email.message

MAX_PARTS = 16
MAX_HEADERS = 4096  # bytes in front of a part's content


class FormError(ValueError):
    """The form is damaged or has no file; the message says which."""


def boundary(content_type: str) -> bytes | None:
    """Returns what separates the parts of a form; None for a body that is not a form.

    Raises:
      FormError: the form has no valid separator.
    """
    header = email.message.Message()
    header["content-type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        return None
    found = header.get_param("boundary")
    if not isinstance(found, str) or not 1 <= len(found) <= 70 or not found.isascii():
        raise FormError("The form's content type has no boundary of 1 to 70 characters.")
    return found.encode()


def file_of(body: bytes, separator: bytes) -> bytes:
    """Returns the content of the first file of a form.

    Args:
      body: the form.
      separator: of its parts, see `boundary`.

    Raises:
      FormError: it has no file, too many parts, or is damaged.
    """
    parts = (b"\r\n" + body).split(b"\r\n--" + separator, MAX_PARTS + 2)
    if len(parts) < 3 or not parts[-1].startswith(b"--"):
        raise FormError(f"The form is damaged, or has more than {MAX_PARTS} parts.")
    for part in parts[1:-1]:
        head, blank, content = part.partition(b"\r\n\r\n")
        if not blank or len(head) > MAX_HEADERS:
            raise FormError("A part of the form is damaged.")
        headers = email.message_from_bytes(head.lstrip())
        if headers.get_content_disposition() == "form-data" and headers.get_filename() is not None:
            return content
    raise FormError("The form has no file; send one: curl -F file=@FILE.")
