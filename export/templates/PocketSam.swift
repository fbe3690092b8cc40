// Made by pocketsam for this bundle: $checkpoint, $precision, canvas $size x $size, up to $points points.
// Encode a picture once, then ask for masks as often as you like. Untested on a device by pocketsam;
// `golden.npz` and manifest.json say what the numbers should be.

import CoreGraphics
import CoreML
import CoreVideo

struct PocketSam {
    static let side = $size          // the canvas
    static let lowSide = $low        // side of the low-resolution masks
    static let maxPoints = $points      // points of a prompt, padding included

    static let prompts = $prompts       // that a call answers; the first is used here

    enum Label: Float {
        case background = 0, foreground = 1, boxFirst = 2, boxSecond = 3
        case pad = -1                // SAM's own: one, wherever there are points but no box
        case padding = -2            // fills the prompt up to maxPoints
    }

    let encoder: MLModel
    let decoder: MLModel

    init(encoder encoderURL: URL, decoder decoderURL: URL) throws {
        let configuration = MLModelConfiguration()
        configuration.computeUnits = .all
        encoder = try MLModel(contentsOf: encoderURL, configuration: configuration)
        decoder = try MLModel(contentsOf: decoderURL, configuration: configuration)
    }

    /// What the decoder needs of a picture.
    struct Embedding {
        let values: MLMultiArray     // [1, 256, side/16, side/16]
        let width: Int, height: Int  // of the original picture
        let scale: Float             // original pixels to pixels of the canvas
    }

    static func float32(_ shape: [Int]) throws -> MLMultiArray {
        let array = try MLMultiArray(shape: shape.map { NSNumber(value: $$0) }, dataType: .float32)
        array.dataPointer.bindMemory(to: Float.self, capacity: array.count)
            .update(repeating: 0, count: array.count)
        return array
    }

    static func pointer(_ array: MLMultiArray) -> UnsafeMutablePointer<Float> {
        array.dataPointer.bindMemory(to: Float.self, capacity: array.count)
    }

    /// The longest side becomes `side`; the picture lies at the top left.
    static func resized(_ width: Int, _ height: Int) -> (width: Int, height: Int) {
        let scale = Double(side) / Double(max(width, height))
        return (max(1, Int(Double(width) * scale + 0.5)), max(1, Int(Double(height) * scale + 0.5)))
    }

$encode

    /// Masks for points and at most one box, in pixels of the original picture.
    /// Logits [4][lowSide * lowSide] and scores [4]: 0 is the single mask, 1 to 3 are whole, part and
    /// subpart; take the one of 1 to 3 that scores highest. Above $threshold is the object.
    func predict(
        _ embedding: Embedding, points: [(x: Float, y: Float, label: Label)], box: CGRect? = nil,
        refine: [Float]? = nil
    ) throws -> (logits: [[Float]], scores: [Float]) {
        var all = points
        if let box {
            all.append((Float(box.minX), Float(box.minY), .boxFirst))
            all.append((Float(box.maxX), Float(box.maxY), .boxSecond))
        } else if !points.isEmpty {
            all.append((0, 0, .pad))
        }
        precondition(all.count <= Self.maxPoints, "this decoder takes \(Self.maxPoints) points")
        let coords = try Self.float32([Self.prompts, Self.maxPoints, 2])
        let labels = try Self.float32([Self.prompts, Self.maxPoints])
        for index in Self.maxPoints..<labels.count { Self.pointer(labels)[index] = Label.padding.rawValue }
        for index in 0..<Self.maxPoints {
            let point = index < all.count ? all[index] : (0, 0, .padding)
            Self.pointer(coords)[2 * index] = point.x * embedding.scale
            Self.pointer(coords)[2 * index + 1] = point.y * embedding.scale
            Self.pointer(labels)[index] = point.label.rawValue
        }
        let mask = try Self.float32([1, 1, Self.lowSide, Self.lowSide]), hasMask = try Self.float32([1])
        if let refine {
            for index in 0..<refine.count { Self.pointer(mask)[index] = refine[index] }
            Self.pointer(hasMask)[0] = 1
        }
        let answer = try decoder.prediction(from: MLDictionaryFeatureProvider(dictionary: [
            "$image_embeddings": embedding.values, "$point_coords": coords, "$point_labels": labels,
            "$mask_input": mask, "$has_mask_input": hasMask,
        ]))
        let low = answer.featureValue(for: "$low_res_masks")!.multiArrayValue!
        let iou = answer.featureValue(for: "$iou_predictions")!.multiArrayValue!
        let area = Self.lowSide * Self.lowSide
        let logits = (0..<4).map { mask in (0..<area).map { low[mask * area + $$0].floatValue } }
        return (logits, (0..<4).map { iou[$$0].floatValue })
    }

    /// Whether a pixel of the original picture belongs to the object: bilinear between logits.
    static func contains(_ logits: [Float], _ embedding: Embedding, x: Int, y: Int) -> Bool {
        func position(_ value: Int) -> (Int, Int, Float) {
            let onCanvas = (Float(value) + 0.5) * embedding.scale
            let place = max(0, onCanvas * Float(lowSide) / Float(side) - 0.5)
            let first = min(Int(place), lowSide - 1)
            return (first, min(first + 1, lowSide - 1), place - Float(first))
        }
        let (x0, x1, dx) = position(x), (y0, y1, dy) = position(y)
        let top = logits[y0 * lowSide + x0] * (1 - dx) + logits[y0 * lowSide + x1] * dx
        let bottom = logits[y1 * lowSide + x0] * (1 - dx) + logits[y1 * lowSide + x1] * dx
        return top * (1 - dy) + bottom * dy > $threshold
    }
}
