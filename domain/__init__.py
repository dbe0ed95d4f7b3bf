"""The nouns of Waybill, their states and their rules: pure, standard library only."""
