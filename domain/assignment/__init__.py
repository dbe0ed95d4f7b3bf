"""Deliveries and couriers: `states` of the way to the door, and `policy`, what a round decides."""
