"""Speed and memory of mithril_opt beside its peers, measured side by side: `python -m benchmarks --help`."""
