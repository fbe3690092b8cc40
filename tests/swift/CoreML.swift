// What PocketSam.swift uses of Core ML, so that it compiles on Linux. A prediction is asked for on stdout
// and answered on stdin, as lines of a name and float32 in base64: see tests/test_swift.py.

@_exported import Foundation

public final class MLMultiArray {
    public enum DataType { case float32, float16 }

    public let shape: [NSNumber], strides: [NSNumber], dataType = DataType.float32
    public let count: Int
    public let dataPointer: UnsafeMutableRawPointer

    public init(shape: [NSNumber], dataType: DataType) throws {
        self.shape = shape
        count = shape.reduce(1) { $0 * $1.intValue }
        var strides: [NSNumber] = [], stride = 1
        for size in shape.reversed() {
            strides.insert(NSNumber(value: stride), at: 0)
            stride *= size.intValue
        }
        self.strides = strides
        dataPointer = UnsafeMutableRawPointer.allocate(byteCount: 4 * count, alignment: 64)
    }

    deinit { dataPointer.deallocate() }

    public subscript(index: Int) -> NSNumber {
        NSNumber(value: dataPointer.bindMemory(to: Float.self, capacity: count)[index])
    }
}

public final class MLFeatureValue {
    public let multiArrayValue: MLMultiArray?
    public init(_ array: MLMultiArray) { multiArrayValue = array }
}

public protocol MLFeatureProvider {
    func featureValue(for name: String) -> MLFeatureValue?
}

public final class MLDictionaryFeatureProvider: MLFeatureProvider {
    let values: [String: MLMultiArray]

    public init(dictionary: [String: Any]) throws {
        values = dictionary.mapValues { $0 as! MLMultiArray }
    }

    public func featureValue(for name: String) -> MLFeatureValue? { values[name].map(MLFeatureValue.init) }
}

public final class MLModelConfiguration {
    public enum ComputeUnits { case all }

    public var computeUnits = ComputeUnits.all
    public init() {}
}

public final class MLModel: @unchecked Sendable {
    let name: String

    init(name: String) { self.name = name }

    public static func load(contentsOf url: URL, configuration: MLModelConfiguration) async throws -> MLModel {
        MLModel(name: url.deletingPathExtension().lastPathComponent)
    }

    public static func compileModel(at url: URL) async throws -> URL { url }

    public func prediction(from provider: MLDictionaryFeatureProvider) throws -> MLFeatureProvider {
        print("run", name)
        for (key, array) in provider.values {
            let shape = array.shape.map { $0.stringValue }.joined(separator: ",")
            print(key, shape, Data(bytes: array.dataPointer, count: 4 * array.count).base64EncodedString())
        }
        print("")
        fflush(stdout)
        var answers: [String: MLMultiArray] = [:]
        while let line = readLine(), !line.isEmpty {
            let words = line.split(separator: " ").map(String.init)
            let shape = words[1].split(separator: ",").map { NSNumber(value: Int($0)!) }
            let array = try MLMultiArray(shape: shape, dataType: .float32)
            let bytes = Data(base64Encoded: words[2])!
            bytes.copyBytes(to: UnsafeMutableRawBufferPointer(start: array.dataPointer, count: bytes.count))
            answers[words[0]] = array
        }
        return try MLDictionaryFeatureProvider(dictionary: answers)
    }
}
