"""Files: what may be read, what may be written, and how a file or folder comes to be whole or not at all.

The ground floor: models, converter and export stand on it, and it knows none of them and no torch.
"""

from .inputs import check_input, file_sha256, reading
from .outputs import check_output, check_outputs, written_whole
from .quoting import quoted

__all__ = ["check_input", "check_output", "check_outputs", "file_sha256", "quoted", "reading", "written_whole"]
