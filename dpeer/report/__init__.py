"""From the files of a run folder to what a person reads: report page, comparison page, model card."""
