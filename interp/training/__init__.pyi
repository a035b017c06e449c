from .recipes import Recipe as Recipe, Tuning as Tuning
from .trainer import fit_tokenizer as fit_tokenizer, train as train, train_condition as train_condition
