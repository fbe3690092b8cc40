    /// The encoder's inputs: a picture, which it normalises, and how much of the canvas it covers.
    private func features(_ picture: Resized) throws -> [String: Any] {
        var buffer: CVPixelBuffer?
        CVPixelBufferCreate(nil, Self.side, Self.side, kCVPixelFormatType_32BGRA, nil, &buffer)
        guard let canvas = buffer else { throw Failure("there is no memory for the canvas") }
        CVPixelBufferLockBaseAddress(canvas, [])
        if let base = CVPixelBufferGetBaseAddress(canvas) {
            let stride = CVPixelBufferGetBytesPerRow(canvas)
            let pixels = base.bindMemory(to: UInt8.self, capacity: stride * Self.side)
            for y in 0..<picture.height {
                for x in 0..<picture.width {
                    let from = 3 * (y * picture.width + x), to = y * stride + 4 * x
                    for channel in 0..<3 { pixels[to + 2 - channel] = picture.rgb[from + channel] }
                    pixels[to + 3] = 255
                }
            }
        }
        CVPixelBufferUnlockBaseAddress(canvas, [])
        let size = try tensor([2], [Float(picture.height), Float(picture.width)])
        return ["$image": MLFeatureValue(pixelBuffer: canvas), "$resized_size": size]
    }
