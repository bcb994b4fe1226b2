"""The public data sets, one file each; a file whose name begins with an underscore serves several of them."""
