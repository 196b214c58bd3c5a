"""Exchange of weights between groups: transports, layout, codec. Imports: distributed, storage, config."""
