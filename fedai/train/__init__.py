"Many adapters over one frozen model: stacked rows, passes, the kept prefix, generation, tasks and local steps."
