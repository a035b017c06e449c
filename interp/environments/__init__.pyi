from .base import ANY as ANY, Environment as Environment, View as View, find as find
