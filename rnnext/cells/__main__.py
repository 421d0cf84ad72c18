"""`python -m rnnext.cells`: the cells with their equations, as `rnnext cells` lists them."""

from rnnext.cells.listing import listing

if __name__ == "__main__":
    print(listing())
