    /// The encoder's input: normalised values.
    private func features(_ picture: Resized) throws -> [String: Any] {
        ["$pixel_values": try tensor([1, 3, Self.side, Self.side], normalised(picture))]
    }
