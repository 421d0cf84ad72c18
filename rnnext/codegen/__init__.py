"""From a cell's step in Python to a C++ cell: record, trace, plan, emit."""
