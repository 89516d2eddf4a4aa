"""Captioned pictures from sets of drawings: several styles, colours, counts, grounds and compositions, drawn anew.

sets.toml        the sets (npm packages), their styles and licences
concepts.toml    what can be drawn: names and emoji
grammar.toml     how pictures are composed and how they are said
held_out.toml    what no model is trained on

packages         fetches packages and reads their files
icons            a set's drawings as SVG, and which one shows an emoji
svg              from SVG, checked, to pixels
colours          a drawing's main colour, and the same drawing in another
concepts         names, articles, plurals
book             all drawings of all concepts, rendered once
grammar          draws what a picture shows (`Scene`)
captions         says it
grounds, paint   and paints it
folder           writes the whole as a folder of captioned pictures
style            writes a small set of one style, to train a LoRA on
words            and what of a prompt a model trained on it knows
"""
