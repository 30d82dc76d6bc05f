"""``DISK RUN``: exports of a run to a disk without room. Prints what is said, and what is left.

The first looks before it writes; the second is told that there is room, and meets the end.
"""

import json
import sys
from pathlib import Path

from lmscale.errors import DataError
from lmscale.exchange import export as exporting
from lmscale.exchange.exported import ExportRequest

disk, run = Path(sys.argv[1]), Path(sys.argv[2])
said = []
for room in (exporting.ROOM_BYTES, -(10**9)):
    exporting.ROOM_BYTES = room
    try:
        exporting.export_run(ExportRequest(folder=run, out=disk / "out"))
    except DataError as error:
        said.append(str(error))
print(json.dumps({"said": said, "left": [path.name for path in disk.iterdir()]}))
