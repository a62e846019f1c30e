"""Progress in a log: lines, few of them, and none of short bars inside others."""

import time

from gainRAG.common import progress


def test_a_log_gets_few_lines_and_no_short_inner_bars(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.3)
    with progress.ProgressBar(total=3, desc="outer", unit="question") as outer:
        for pause in (0.0, 0.0, 0.1):
            with progress.ProgressBar(total=10, desc="inner", leave=False) as inner:
                for _ in range(10):
                    time.sleep(pause)
                    inner.update()
            outer.update()
    written = capsys.readouterr().err
    lines = written.splitlines()
    assert "\r" not in written
    assert lines[-1].startswith("outer: 100%") and "3/3" in lines[-1]
    inner = [line for line in lines if line.startswith("inner")]
    assert 1 <= len(inner) <= 6, "of thirty updates, and only of the bar that took long"
    assert len(set(lines)) == len(lines)
