"""What a model's forward method takes, and runs that between them give it all of that.

parameters      of a forward method: inputs, what the model makes itself, answers, switches
values          made-up values of inputs, by name
call            one call of a forward method
runs            calls of a model that give every input once, and the inputs that no call could give
"""
