"""What verbs take, in groups: frozen dataclasses that know nothing of torch.

A group's docstring is its help, and its file its panel. What a verb takes is a class of these groups, in `verbs`.
"""
