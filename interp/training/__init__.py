"""Making a series: fine-tuning, masked supervision, reinforcement, and agents whose answer is known."""
