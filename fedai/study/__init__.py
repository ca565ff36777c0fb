"Whole runs: compared with each other, planned before they start, reported when they are over."
