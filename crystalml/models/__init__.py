"""Networks: encoders of crystals and the heads on them. They never see a noise kernel."""
