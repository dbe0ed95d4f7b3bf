"""Deliveries and couriers: `states` of the way to the door, and `matching`, what a round decides."""
