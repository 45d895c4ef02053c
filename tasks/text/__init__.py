"""Language modelling on long documents."""
