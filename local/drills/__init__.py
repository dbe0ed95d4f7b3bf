"""Drills: each stages an incident of RUNBOOK.md on the running stack, and watches until the runbook has cleared it."""
