    /// The heavy network: once per picture.
    func encode(_ picture: CGImage) throws -> Embedding {
        let (width, height) = Self.resized(picture.width, picture.height)
        var pixels = [UInt8](repeating: 0, count: width * height * 4)
        let context = CGContext(
            data: &pixels, width: width, height: height, bitsPerComponent: 8, bytesPerRow: width * 4,
            space: CGColorSpace(name: CGColorSpace.sRGB)!,
            bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)!
        context.interpolationQuality = .high
        context.draw(picture, in: CGRect(x: 0, y: 0, width: width, height: height))
        let stretch = $stretch  // whether the picture's least and greatest value become 0 and 1 first
        let colours = pixels.enumerated().lazy.filter { $$0.offset % 4 < 3 }.map { Float($$0.element) }
        let zero = stretch ? colours.min()! : 0
        let range = stretch ? max(colours.max()! - zero, 1e-8) : 1
        let mean: [Float] = [$mean], deviation: [Float] = [$std]
        let input = try Self.float32([1, 3, Self.side, Self.side])  // zeros: SAM pads after normalising
        let values = Self.pointer(input)
        for channel in 0..<3 {
            for y in 0..<height {
                for x in 0..<width {
                    let value = Float(pixels[(y * width + x) * 4 + channel])
                    values[(channel * Self.side + y) * Self.side + x] =
                        ((value - zero) / range - mean[channel]) / deviation[channel]
                }
            }
        }
        let answer = try encoder.prediction(
            from: MLDictionaryFeatureProvider(dictionary: ["$pixel_values": input]))
        return Embedding(
            values: answer.featureValue(for: "$image_embeddings")!.multiArrayValue!,
            width: picture.width, height: picture.height,
            scale: Float(Self.side) / Float(max(picture.width, picture.height)))
    }
