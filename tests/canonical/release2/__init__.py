"""The vectors that the corpus's second release added, a module for each kind of input.

Their lines stand behind those of the first release. What is added next is a release of its own, in a package of its own.
"""

from release2 import damage, doubles, integers, keys, order, refusals, shapes, texts

ACCEPTED = doubles.CLASSES + integers.CLASSES + texts.CLASSES + keys.CLASSES + shapes.CLASSES
REJECTED = refusals.CLASSES + damage.CLASSES
SEVERAL_FAULTS = order.CLASS
