"What a client's model is worth: metrics, the scorecard, and what is tracked while a run goes on."
