"""What is asked: prompt sets, rubrics, judge prompts, and how answers become readings."""
