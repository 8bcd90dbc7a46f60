"""Roll out: strategies say how completions are made, engines make them."""
