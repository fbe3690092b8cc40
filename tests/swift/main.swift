// Runs PocketSam.swift on pixels out of files, and writes its masks beside them.

import CoreGraphics
import CoreML

let arguments = CommandLine.arguments
let folder = URL(fileURLWithPath: arguments[1])
let sam = try await PocketSam(
    encoder: folder.appendingPathComponent("encoder.mlmodelc"),
    decoder: folder.appendingPathComponent("decoder.mlmodelc"))
for check in try await sam.selfCheck(folder.appendingPathComponent("golden.npz")) {
    print("check", check.prompt, check.snr, check.maskIoU, check.isRight)
}

/// A file of two int32, width and height, and the pixels as RGBA.
for path in arguments.dropFirst(2) {
    let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
    let number = { (at: Int) in (0..<4).reduce(0) { $0 | Int(bytes[at + $1]) << (8 * $1) } }
    let (width, height) = (number(0), number(4))
    let embedding = try await sam.encode(CGImage(rgba: Array(bytes[8...]), width: width, height: height))
    let middle = PocketSam.Point(x: Float(width) / 2, y: Float(height) / 2)
    let corner = PocketSam.Point(x: Float(width) * 0.1, y: Float(height) * 0.1, label: .background)
    let box = CGRect(
        x: Double(width) * 0.2, y: Double(height) * 0.2, width: Double(width) * 0.6, height: Double(height) * 0.7)
    let first = try await sam.predict(embedding, points: [middle])
    let answers = [
        ("click", first),
        ("clicks", try await sam.predict(embedding, points: [middle, corner])),
        ("box", try await sam.predict(embedding, points: [], box: box)),
        ("both", try await sam.predict(embedding, points: [middle], box: box)),
        ("edge", try await sam.predict(embedding, points: [], box: CGRect(
            x: -30, y: -20, width: 30 + Double(width) * 0.5, height: Double(height) + 60))),
        ("refine", try await sam.predict(embedding, points: [middle], refine: first.mask)),
    ]
    for (name, answer) in answers {
        let mask = PocketSam.mask(answer.mask, of: embedding)
        try Data(mask.map { $0 ? 1 : 0 }).write(to: URL(fileURLWithPath: "\(path).\(name)"))
        print("mask", name, answer.best)
    }
    let outside = PocketSam.Point(x: Float(width) + 1, y: 0), nowhere = PocketSam.Point(x: .nan, y: 0)
    let refused: [() async throws -> Void] = [
        { _ = try await sam.predict(embedding, points: [middle], refine: [0, 0]) },
        { _ = try await sam.predict(embedding, points: [outside]) },
        { _ = try await sam.predict(embedding, points: [nowhere]) },
        { _ = try await sam.predict(embedding, points: [], box: CGRect(x: -9, y: 0, width: 8, height: 20)) },
    ]
    for each in refused {
        var isRefused = false
        do { try await each() } catch { isRefused = true }
        precondition(isRefused)
    }
    let drawn = PocketSam.image(first.mask, of: embedding)!
    precondition(drawn.width == width && drawn.height == height)
}
