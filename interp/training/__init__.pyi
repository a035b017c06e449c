from .recipes import Recipe as Recipe
from .recipes import Tuning as Tuning
from .trainer import fit_tokenizer as fit_tokenizer
from .trainer import train as train
from .trainer import train_condition as train_condition
