// Made by pocketsam for this bundle: $checkpoint, $precision, canvas $size x $size, up to $points points.
// Encode a picture once, then ask for masks as often as you like; docs/iphone.md leads from nothing to a
// mask on the screen. selfCheck() says whether this device computes what PyTorch computed.

import CoreGraphics
import CoreML
import CoreVideo
import Foundation
import ImageIO

/// One picture after another, from any task: an actor, since prediction takes a while.
actor PocketSam {
    static let side = $size          // the canvas
    static let lowSide = $low        // side of the low-resolution masks
    static let maxPoints = $points      // points of a prompt, padding included
    static let prompts = $prompts       // that a call answers; the first is used here
    static let leastSNR = $least_snr    // dB that selfCheck wants, beside PyTorch
    static let leastIoU = $least_iou    // mean mask IoU that selfCheck wants, beside PyTorch

    enum Label: Float {
        case background = 0, foreground = 1, boxFirst = 2, boxSecond = 3
        case pad = -1                // SAM's own: one, wherever there are points but no box
        case padding = -2            // fills the prompt up to maxPoints
    }

    struct Point {
        var x: Float, y: Float       // in pixels of the original picture
        var label: Label = .foreground
    }

    /// What the decoder needs of a picture.
    struct Embedding: @unchecked Sendable {
        let values: MLMultiArray     // [1, 256, side/16, side/16]
        let width: Int, height: Int  // of the original picture
    }

    /// Masks of a prompt as logits [4][lowSide * lowSide], with the IoU that the network expects of each.
    /// 0 is the single mask, 1 to 3 are whole, part and subpart; above $threshold is the object.
    struct Answer: Sendable {
        let logits: [[Float]]
        let scores: [Float]
        let best: Int                // to show: of a click or a box the best of three, otherwise mask 0
        var mask: [Float] { logits[best] }
    }

    /// One golden prompt: how near this device is to PyTorch's answer.
    struct Check: Sendable {
        let prompt: String
        let snr: Double, maskIoU: Double
        var isRight: Bool { snr >= PocketSam.leastSNR && maskIoU >= PocketSam.leastIoU }
    }

    struct Failure: LocalizedError {
        let errorDescription: String?
        init(_ text: String) { errorDescription = text }
    }

    private let encoder: MLModel
    private let decoder: MLModel

    /// Opens compiled models: Xcode turns encoder.mlpackage into encoder.mlmodelc in the app's bundle.
    init(encoder encoderURL: URL, decoder decoderURL: URL) async throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .all
        encoder = try await MLModel.load(contentsOf: encoderURL, configuration: configuration)
        decoder = try await MLModel.load(contentsOf: decoderURL, configuration: configuration)
    }

    /// Opens the models that Xcode has put into the app.
    init(in bundle: Bundle = .main) async throws {
        guard let encoder = bundle.url(forResource: "encoder", withExtension: "mlmodelc"),
            let decoder = bundle.url(forResource: "decoder", withExtension: "mlmodelc")
        else { throw Failure("encoder.mlpackage and decoder.mlpackage are not in the app's target") }
        try await self.init(encoder: encoder, decoder: decoder)
    }

    /// Opens packages that were downloaded: compiles them first, which takes seconds.
    init(packages encoder: URL, _ decoder: URL) async throws {
        try await self.init(
            encoder: MLModel.compileModel(at: encoder), decoder: MLModel.compileModel(at: decoder))
    }

    /// The heavy network: once per picture. The picture must lie upright: see `upright`.
    func encode(_ picture: CGImage) throws -> Embedding {
        let pixels = try Self.readPixels(picture)
        return try encode(Resized(rgba: pixels, width: picture.width, height: picture.height))
    }

    private func encode(_ picture: Resized) throws -> Embedding {
        let answer = try encoder.prediction(from: MLDictionaryFeatureProvider(dictionary: features(picture)))
        guard let values = answer.featureValue(for: "$image_embeddings")?.multiArrayValue else {
            throw Failure("the encoder gave no $image_embeddings")
        }
        return Embedding(values: values, width: picture.original.width, height: picture.original.height)
    }

$encode

    /// Masks for points and at most one box, in pixels of the original picture. A box is cut off at its edges.
    /// refine: logits [lowSide * lowSide] of an earlier answer, which this one starts from.
    func predict(
        _ embedding: Embedding, points: [Point], box: CGRect? = nil, refine: [Float]? = nil
    ) throws -> Answer {
        var all = points
        if let box {
            let (x0, x1) = (max(0, box.minX), min(CGFloat(embedding.width), box.maxX))
            let (y0, y1) = (max(0, box.minY), min(CGFloat(embedding.height), box.maxY))
            guard box.minX < box.maxX, box.minY < box.maxY, x0 < x1, y0 < y1 else {
                throw Failure("the box holds nothing of the picture")
            }
            all.append(Point(x: Float(x0), y: Float(y0), label: .boxFirst))
            all.append(Point(x: Float(x1), y: Float(y1), label: .boxSecond))
        } else if !points.isEmpty {
            all.append(Point(x: 0, y: 0, label: .pad))
        }
        guard all.count <= Self.maxPoints else {
            throw Failure("this decoder takes \(Self.maxPoints) points, a box is two")
        }
        let (width, height) = resizedSize(embedding.width, embedding.height)
        let (scaleX, scaleY) = (
            Double(width) / Double(embedding.width), Double(height) / Double(embedding.height)
        )
        var coords = [Float](repeating: 0, count: Self.prompts * Self.maxPoints * 2)
        var labels = [Float](repeating: Label.padding.rawValue, count: Self.prompts * Self.maxPoints)
        for (index, point) in all.enumerated() {
            coords[2 * index] = Float(Double(point.x) * scaleX)
            coords[2 * index + 1] = Float(Double(point.y) * scaleY)
            labels[index] = point.label.rawValue
        }
        for point in points
        where !(0...Float(embedding.width) ~= point.x && 0...Float(embedding.height) ~= point.y) {
            throw Failure("a point lies outside the picture: \(point.x), \(point.y)")
        }
        let area = Self.lowSide * Self.lowSide
        guard refine == nil || refine!.count == area else {
            throw Failure("refine takes \(area) logits of an earlier answer, not \(refine!.count)")
        }
        let mask = refine ?? [Float](repeating: 0, count: area)
        let answer = try decoder.prediction(from: MLDictionaryFeatureProvider(dictionary: [
            "$image_embeddings": embedding.values,
            "$point_coords": tensor([Self.prompts, Self.maxPoints, 2], coords),
            "$point_labels": tensor([Self.prompts, Self.maxPoints], labels),
            "$mask_input": tensor([1, 1, Self.lowSide, Self.lowSide], mask),
            "$has_mask_input": tensor([1], [refine == nil ? 0 : 1]),
        ]))
        guard let low = answer.featureValue(for: "$low_res_masks")?.multiArrayValue,
            let ious = answer.featureValue(for: "$iou_predictions")?.multiArrayValue
        else { throw Failure("the decoder gave no masks") }
        let (logits, scores) = (floats(low, count: 4 * area), floats(ious, count: 4))
        let likely = (1...3).max { scores[$$0] < scores[$$1] }!
        return Answer(
            logits: (0..<4).map { Array(logits[$$0 * area..<($$0 + 1) * area]) }, scores: scores,
            best: all.count < 3 ? likely : 0)
    }

    /// The mask of logits at the original picture's size, row by row: SAM's two bilinear steps.
    static func mask(_ logits: [Float], of embedding: Embedding) -> [Bool] {
        upscaled(logits, width: embedding.width, height: embedding.height)
    }

    /// A mask in a colour, transparent elsewhere: draw it over the picture.
    static func image(
        _ logits: [Float], of embedding: Embedding,
        red: UInt8 = 61, green: UInt8 = 90, blue: UInt8 = 254, alpha: UInt8 = 128
    ) -> CGImage? {
        let colour = [red, green, blue].map { UInt8(Int($$0) * Int(alpha) / 255) } + [alpha]
        var pixels = [UInt8](repeating: 0, count: 4 * embedding.width * embedding.height)
        for (index, isObject) in mask(logits, of: embedding).enumerated() where isObject {
            for channel in 0..<4 { pixels[4 * index + channel] = colour[channel] }
        }
        guard let provider = CGDataProvider(data: Data(pixels) as CFData),
            let space = CGColorSpace(name: CGColorSpace.sRGB)
        else { return nil }
        return CGImage(
            width: embedding.width, height: embedding.height, bitsPerComponent: 8, bitsPerPixel: 32,
            bytesPerRow: 4 * embedding.width, space: space,
            bitmapInfo: CGBitmapInfo(rawValue: CGImageAlphaInfo.premultipliedLast.rawValue),
            provider: provider, decode: nil, shouldInterpolate: false, intent: .defaultIntent)
    }

    /// A photograph of a file, turned as its EXIF says: `UIImage.cgImage` forgets that.
    static func upright(contentsOf url: URL) throws -> CGImage {
        guard let source = CGImageSourceCreateWithURL(url as CFURL, nil),
            let properties = CGImageSourceCopyPropertiesAtIndex(source, 0, nil) as? [CFString: Any],
            let width = properties[kCGImagePropertyPixelWidth] as? Int,
            let height = properties[kCGImagePropertyPixelHeight] as? Int
        else { throw Failure("\(url.lastPathComponent) is not a picture") }
        let options: [CFString: Any] = [
            kCGImageSourceCreateThumbnailFromImageAlways: true,
            kCGImageSourceCreateThumbnailWithTransform: true,  // this turns it
            kCGImageSourceThumbnailMaxPixelSize: max(width, height),
        ]
        guard let image = CGImageSourceCreateThumbnailAtIndex(source, 0, options as CFDictionary) else {
            throw Failure("\(url.lastPathComponent) cannot be read")
        }
        return image
    }

    /// Answers the prompts in golden.npz (add it to the app's target), and compares with PyTorch's answers.
    func selfCheck(_ golden: URL) throws -> [Check] {
        let arrays = try readNpz(Data(contentsOf: golden))
        guard let image = arrays["image"] else { throw Failure("golden.npz holds no picture") }
        let (height, width) = (image.shape[0], image.shape[1])
        var rgba = [UInt8](repeating: 255, count: 4 * width * height)
        for index in 0..<width * height {
            for channel in 0..<3 { rgba[4 * index + channel] = UInt8(image.values[3 * index + channel]) }
        }
        let embedding = try encode(Resized(rgba: rgba, width: width, height: height))
        return try ["point", "box", "points", "refine"].map { name in
            let numbers = { (key: String) in arrays["\(name)_\(key)"]?.values }
            let (coords, labels) = (numbers("point_coords") ?? [], numbers("point_labels") ?? [])
            let points = labels.indices.map {
                Point(x: coords[2 * $$0], y: coords[2 * $$0 + 1], label: Label(rawValue: labels[$$0]) ?? .pad)
            }
            let box = numbers("boxes").map { corners -> CGRect in
                let values = corners.map { CGFloat($$0) }
                return CGRect(
                    x: values[0], y: values[1], width: values[2] - values[0], height: values[3] - values[1])
            }
            let answer = try predict(embedding, points: points, box: box, refine: numbers("mask_inputs"))
            guard let expected = arrays["\(name)_low_res_masks"] else {
                throw Failure("golden.npz holds no masks for \(name)")
            }
            return compare(name, expected, answer)
        }
    }

    /// Pixels as RGBA, laid over white.
    private static func readPixels(_ picture: CGImage) throws -> [UInt8] {
        let (width, height) = (picture.width, picture.height)
        var pixels = [UInt8](repeating: 255, count: 4 * width * height)
        let isDrawn = pixels.withUnsafeMutableBytes { bytes -> Bool in
            guard let space = CGColorSpace(name: CGColorSpace.sRGB),
                let context = CGContext(
                    data: bytes.baseAddress, width: width, height: height, bitsPerComponent: 8,
                    bytesPerRow: 4 * width, space: space,
                    bitmapInfo: CGImageAlphaInfo.noneSkipLast.rawValue)
            else { return false }
            context.draw(picture, in: CGRect(x: 0, y: 0, width: width, height: height))
            return true
        }
        guard isDrawn else { throw Failure("there is no memory for \(width) x \(height) pixels") }
        return pixels
    }
}

// MARK: - Arithmetic: the same in PocketSam.kt, on the web page and in pocketsam's Python

/// The size of a picture on the canvas: its longest side becomes `side`.
func resizedSize(_ width: Int, _ height: Int) -> (width: Int, height: Int) {
    let scale = Double(PocketSam.side) / Double(max(width, height))
    return (max(1, Int(Double(width) * scale + 0.5)), max(1, Int(Double(height) * scale + 0.5)))
}

/// A picture on the canvas, as RGB bytes: scaled as Pillow does, antialiased, in fixed point.
struct Resized {
    let original: (width: Int, height: Int)
    let width: Int, height: Int
    private(set) var rgb: [UInt8]
    private static let bits = 22     // of a weight's fraction

    init(rgba: [UInt8], width: Int, height: Int) {
        original = (width, height)
        (self.width, self.height) = resizedSize(width, height)
        rgb = []
        rgb = Self.columns(Self.rows(rgba, width, height, self.width), self.width, height, self.height)
    }

    private struct Taps {
        let first: [Int], weights: [[Int]]

        init(_ inputs: Int, _ outputs: Int) {
            let scale = Double(inputs) / Double(outputs), support = max(scale, 1)
            var first: [Int] = [], weights: [[Int]] = []
            for output in 0..<outputs {
                let centre = (Double(output) + 0.5) * scale
                let start = max(Int(centre - support + 0.5), 0)
                let end = min(Int(centre + support + 0.5), inputs)
                let values = (start..<end).map {
                    max(1 - abs((Double($$0) - centre + 0.5) * (1 / support)), 0)
                }
                let sum = values.reduce(0, +)
                first.append(start)
                weights.append(values.map { Int(0.5 + $$0 / sum * Double(1 << bits)) })
            }
            (self.first, self.weights) = (first, weights)
        }
    }

    private static func rows(_ rgba: [UInt8], _ width: Int, _ height: Int, _ outWidth: Int) -> [UInt8] {
        let taps = Taps(width, outWidth)
        var out = [UInt8](repeating: 0, count: 3 * outWidth * height)
        for y in 0..<height {
            for x in 0..<outWidth {
                var (red, green, blue) = (1 << (bits - 1), 1 << (bits - 1), 1 << (bits - 1))
                var from = 4 * (y * width + taps.first[x])
                for weight in taps.weights[x] {
                    red += Int(rgba[from]) * weight
                    green += Int(rgba[from + 1]) * weight
                    blue += Int(rgba[from + 2]) * weight
                    from += 4
                }
                let to = 3 * (y * outWidth + x)
                out[to] = UInt8(red >> bits)
                out[to + 1] = UInt8(green >> bits)
                out[to + 2] = UInt8(blue >> bits)
            }
        }
        return out
    }

    private static func columns(_ rgb: [UInt8], _ width: Int, _ height: Int, _ outHeight: Int) -> [UInt8] {
        if height == outHeight { return rgb }
        let taps = Taps(height, outHeight), line = 3 * width
        var out = [UInt8](repeating: 0, count: line * outHeight)
        for y in 0..<outHeight {
            for i in 0..<line {
                var sum = 1 << (bits - 1)
                var from = taps.first[y] * line + i
                for weight in taps.weights[y] {
                    sum += Int(rgb[from]) * weight
                    from += line
                }
                out[y * line + i] = UInt8(sum >> bits)
            }
        }
        return out
    }
}

/// Normalised values [3, side, side] of a picture; zeros beside it: SAM pads after normalising.
func normalised(_ picture: Resized) -> [Float] {
    let side = PocketSam.side, stretch = $stretch  // whether least and greatest become 0 and 1 first
    let zero = stretch ? Float(picture.rgb.min()!) : 0
    let range = stretch ? max(Float(picture.rgb.max()!) - zero, 1e-8) : 1
    let mean: [Float] = [$mean], deviation: [Float] = [$std]
    var values = [Float](repeating: 0, count: 3 * side * side)
    for channel in 0..<3 {
        for y in 0..<picture.height {
            for x in 0..<picture.width {
                let value = (Float(picture.rgb[3 * (y * picture.width + x) + channel]) - zero) / range
                values[(channel * side + y) * side + x] = (value - mean[channel]) / deviation[channel]
            }
        }
    }
    return values
}

/// Logits scaled to the canvas, cropped to the picture, and scaled to its size; true above $threshold.
func upscaled(_ logits: [Float], width: Int, height: Int) -> [Bool] {
    let low = PocketSam.lowSide
    let (resizedWidth, resizedHeight) = resizedSize(width, height)
    let rows = upscalingTaps(resizedHeight, height), columns = upscalingTaps(resizedWidth, width)
    var out = [Bool](repeating: false, count: width * height)
    var row = [Float](repeating: 0, count: low)
    for y in 0..<height {
        for x in 0..<low { row[x] = rows[y].reduce(0) { $$0 + $$1.weight * logits[$$1.cell * low + x] } }
        for x in 0..<width {
            var sum: Float = 0
            for tap in columns[x] { sum += tap.weight * row[tap.cell] }
            out[y * width + x] = sum > $threshold
        }
    }
    return out
}

private func upscalingTaps(_ resized: Int, _ size: Int) -> [[(cell: Int, weight: Float)]] {
    func place(_ index: Int, _ inputs: Int, _ outputs: Int) -> (Int, Float) {
        let centre = max((Float(index) + 0.5) * (Float(inputs) / Float(outputs)) - 0.5, 0)
        let first = min(Int(centre), inputs - 1)
        return (first, centre - Float(first))
    }
    return (0..<size).map { index in
        let (pixel, share) = place(index, resized, size)
        return (0...1).flatMap { step -> [(cell: Int, weight: Float)] in
            let (cell, inside) = place(min(pixel + step, resized - 1), PocketSam.lowSide, PocketSam.side)
            let part = step == 1 ? share : 1 - share
            return [
                (cell, part * (1 - inside)), (min(cell + 1, PocketSam.lowSide - 1), part * inside),
            ]
        }
    }
}

private func compare(_ name: String, _ expected: NumpyArray, _ answer: PocketSam.Answer) -> PocketSam.Check {
    let low = PocketSam.lowSide, side = expected.shape[2]
    let step = (low + side - 1) / side  // the bundle keeps every n-th row and column
    var signal = 0.0, noise = 0.0
    var ious: [Double] = []
    for mask in 0..<4 {
        var size = 0, common = 0, either = 0
        for i in 0..<side * side {
            let wanted = expected.values[mask * side * side + i]
            let found = answer.logits[mask][i / side * step * low + i % side * step]
            signal += Double(wanted) * Double(wanted)
            noise += Double(wanted - found) * Double(wanted - found)
            if wanted > $threshold { size += 1 }
            if wanted > $threshold && found > $threshold { common += 1 }
            if wanted > $threshold || found > $threshold { either += 1 }
        }
        // of a mask of less than a fiftieth of the picture, the IoU says nothing
        if size * 50 >= side * side { ious.append(Double(common) / Double(either)) }
    }
    let iou = ious.isEmpty ? 1 : ious.reduce(0, +) / Double(ious.count)
    return PocketSam.Check(prompt: name, snr: noise == 0 ? 200 : 10 * log10(signal / noise), maskIoU: iou)
}

// MARK: - Tensors and NumPy's files

private func tensor(_ shape: [Int], _ values: [Float]) throws -> MLMultiArray {
    let array = try MLMultiArray(shape: shape.map { NSNumber(value: $$0) }, dataType: .float32)
    array.dataPointer.bindMemory(to: Float.self, capacity: array.count)
        .update(from: values, count: values.count)
    return array
}

/// The first numbers of an output, in the order of its axes; Core ML may pad rows, or answer in float16.
private func floats(_ array: MLMultiArray, count: Int) -> [Float] {
    let shape = array.shape.map(\.intValue), strides = array.strides.map(\.intValue)
    var isDense = array.dataType == .float32
    var expected = 1
    for axis in shape.indices.reversed() {
        isDense = isDense && (strides[axis] == expected || shape[axis] == 1)
        expected *= shape[axis]
    }
    if isDense {
        let pointer = array.dataPointer.bindMemory(to: Float.self, capacity: array.count)
        return Array(UnsafeBufferPointer(start: pointer, count: count))
    }
    return (0..<count).map { array[$$0].floatValue }  // slow, but right for every layout
}

struct NumpyArray {
    let shape: [Int]
    let values: [Float]
}

/// The arrays of uint8 and float32 in an .npz file, by name.
func readNpz(_ data: Data) throws -> [String: NumpyArray] {
    let bytes = [UInt8](data)
    func number(_ at: Int, _ count: Int) -> Int {
        (0..<count).reduce(0) { $$0 | Int(bytes[at + $$1]) << (8 * $$1) }
    }
    guard var end = bytes.indices.last.map({ $$0 - 21 }), end >= 0 else {
        throw PocketSam.Failure("golden.npz is empty")
    }
    while end > 0 && number(end, 4) != 0x0605_4b50 { end -= 1 }
    var entry = number(end + 16, 4)
    var arrays: [String: NumpyArray] = [:]
    for _ in 0..<number(end + 10, 2) {
        let nameLength = number(entry + 28, 2), local = number(entry + 42, 4)
        let name = String(decoding: bytes[entry + 46..<entry + 46 + nameLength], as: UTF8.self)
        let start = local + 30 + number(local + 26, 2) + number(local + 28, 2)
        let packed = Data(bytes[start..<start + number(entry + 20, 4)])
        // zip's method 8 is what Apple calls zlib: deflate without a header
        let file = number(entry + 10, 2) == 8 ? try inflate(packed) : packed
        if let array = readNpy([UInt8](file)) { arrays[name.replacingOccurrences(of: ".npy", with: "")] = array }
        entry += 46 + nameLength + number(entry + 30, 2) + number(entry + 32, 2)
    }
    return arrays
}

private func inflate(_ packed: Data) throws -> Data {
    try (packed as NSData).decompressed(using: .zlib) as Data
}

/// An array of uint8 or float32; nil for another type.
private func readNpy(_ bytes: [UInt8]) -> NumpyArray? {
    let start = 10 + Int(bytes[8]) + Int(bytes[9]) << 8
    let header = String(decoding: bytes[10..<start], as: UTF8.self)
    guard let open = header.range(of: "'shape': ("),
        let close = header.range(of: ")", range: open.upperBound..<header.endIndex)
    else { return nil }
    let shape = header[open.upperBound..<close.lowerBound].split(separator: ",").compactMap {
        Int($$0.trimmingCharacters(in: .whitespaces))
    }
    let count = shape.reduce(1, *)
    if header.contains("'|u1'") {
        return NumpyArray(shape: shape, values: bytes[start..<start + count].map { Float($$0) })
    }
    guard header.contains("'<f4'") else { return nil }
    let values = (0..<count).map { index -> Float in
        let at = start + 4 * index
        let bits = (0..<4).reduce(UInt32(0)) { $$0 | UInt32(bytes[at + $$1]) << UInt32(8 * $$1) }
        return Float(bitPattern: bits)
    }
    return NumpyArray(shape: shape, values: values)
}
