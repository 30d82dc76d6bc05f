"""What an export of adapters says of itself: to people, in its README.md, and to programs."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from lmscale.exchange.exported import Check, ExportRequest, Report, describe_found
from lmscale.exchange.parity import AUTO_CLASSES
from lmscale.exchange.peft_plan import Adaptation
from lmscale.exchange.write_tensors import Written


@dataclass(frozen=True, kw_only=True)
class PeftExported:
    """What was written."""

    request: ExportRequest
    adaptation: Adaptation
    file: Written
    check: Check


def report_peft(exported: PeftExported) -> Report:
    """What the command line says."""
    request, adaptation, file = exported.request, exported.adaptation, exported.file
    size = f"{exported.check.tensors} tensors of fp32, {file.bytes / 1e6:,.1f} MB"
    rows = [
        ("exported", f"{adaptation.found.name}, {adaptation.found.weights} weights"),
        ("folder", str(request.out)),
        ("as", f"{len(adaptation.adapters)} adapters, {size}"),
        ("beside", f"{adaptation.base.folder}, whose weights are those that the run has adapted"),
        ("verified", _say_verified(exported)),
    ]
    if adaptation.whole:
        rows.append(("whole", ", ".join(adaptation.saved_modules)))
    return Report(describe_peft(exported), rows)


def describe_peft(exported: PeftExported) -> dict[str, Any]:
    """What ``lmscale_export.json`` says."""
    adaptation, file = exported.adaptation, exported.file
    found, plan = adaptation.found, adaptation.plan
    return {
        "format": "peft",
        **describe_found(found),
        "base": str(adaptation.base.folder.resolve()),
        "model_type": plan.architecture.model_type,
        "class": plan.class_name,
        "adapters": len(adaptation.adapters),
        "saved_modules": adaptation.saved_modules,
        "files": {file.name: [file.bytes, file.sha256]},
        "verified": asdict(exported.check),
    }


def _say_verified(exported: PeftExported) -> str:
    parity = exported.check.parity
    if parity is None:
        return f"Logits were not compared: {exported.check.why_not}."
    return parity.describe("PEFT")


def render_peft_card(exported: PeftExported) -> str:
    """README.md of the folder."""
    adaptation = exported.adaptation
    found, plan, base = adaptation.found, adaptation.plan, adaptation.base.folder.resolve()
    auto = AUTO_CLASSES[plan.section.family, plan.head]
    settings = "".join(f", {name}={value!r}" for name, value in adaptation.settings.items())
    return f"""---
base_model: {base}
library_name: peft
tags:
- lmscale
---

# {found.config.run.name}

{len(adaptation.adapters)} adapters of the model in `{base}`, trained with lmscale: step
{found.manifest.step:,} of the run `{found.config.run.name}`.
The weights there are those that the run has adapted.

{_say_verified(exported)}

```python
from peft import PeftModel
from transformers import {auto}

base = {auto}.from_pretrained({json.dumps(str(base))}{settings})
model = PeftModel.from_pretrained(base, "DIR")  # this folder
model = model.merge_and_unload()  # where a model without adapters is wanted
```
"""
