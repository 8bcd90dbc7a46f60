"""What a run imports, for processes that are forked from one that has it all."""

import matplotlib.backends.backend_agg
import matplotlib.figure
import pandas  # pyarrow looks for it when a table is made
import peft.tuners.lora
import pyarrow.parquet
import transformers.models.llama.modeling_llama

import coterie.api
import coterie.build
import coterie.cli.app
import coterie.cli.commands
import coterie.loop
import coterie.registry
import coterie.scale.processes

__all__ = ["coterie", "matplotlib", "pandas", "peft", "pyarrow", "transformers"]

coterie.registry.all_pieces()
