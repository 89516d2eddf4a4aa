"""Makes sets of captioned pictures: `drawings`, scenes and small sets of one style from sets of drawings."""
