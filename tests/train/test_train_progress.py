"""What a run has done so far."""

from dataclasses import asdict

from guard_cases import report

from lmscale.train.progress import Progress


def test_progress_adds_up_steps_samples_tokens_and_skipped_steps():
    progress = Progress(step=4, n=48, tokens=1200, skipped_steps=1)
    after = progress.after(report(5, targets=321)).after(report(6, is_skipped=True))
    assert after == Progress(step=6, n=72, tokens=1821, skipped_steps=2)
    assert Progress(**asdict(after)) == after
