    /// The heavy network: once per picture. The model normalises, and ignores what lies off the picture.
    func encode(_ picture: CGImage) throws -> Embedding {
        let (width, height) = Self.resized(picture.width, picture.height)
        var buffer: CVPixelBuffer?
        CVPixelBufferCreate(nil, Self.side, Self.side, kCVPixelFormatType_32ARGB, nil, &buffer)
        let canvas = buffer!
        CVPixelBufferLockBaseAddress(canvas, [])
        let context = CGContext(
            data: CVPixelBufferGetBaseAddress(canvas), width: Self.side, height: Self.side,
            bitsPerComponent: 8, bytesPerRow: CVPixelBufferGetBytesPerRow(canvas),
            space: CGColorSpace(name: CGColorSpace.sRGB)!,
            bitmapInfo: CGImageAlphaInfo.noneSkipFirst.rawValue)!
        context.interpolationQuality = .high
        // Core Graphics counts y from below: this is the top left corner
        context.draw(picture, in: CGRect(x: 0, y: Self.side - height, width: width, height: height))
        CVPixelBufferUnlockBaseAddress(canvas, [])
        let size = try Self.float32([2])
        Self.pointer(size)[0] = Float(height)
        Self.pointer(size)[1] = Float(width)
        let answer = try encoder.prediction(from: MLDictionaryFeatureProvider(dictionary: [
            "$image": MLFeatureValue(pixelBuffer: canvas), "$resized_size": size,
        ]))
        return Embedding(
            values: answer.featureValue(for: "$image_embeddings")!.multiArrayValue!,
            width: picture.width, height: picture.height,
            scale: Float(Self.side) / Float(max(picture.width, picture.height)))
    }
