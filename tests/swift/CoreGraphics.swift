// What PocketSam.swift uses of Core Graphics: pictures in memory.

@_exported import Foundation

public typealias CFData = NSData
public typealias CFURL = NSURL
public typealias CFString = NSString
public typealias CFDictionary = NSDictionary

public final class CGImage {
    public let width: Int, height: Int
    public let pixels: [UInt8]  // RGBA

    public init(rgba: [UInt8], width: Int, height: Int) { (pixels, self.width, self.height) = (rgba, width, height) }

    public init?(
        width: Int, height: Int, bitsPerComponent: Int, bitsPerPixel: Int, bytesPerRow: Int, space: CGColorSpace,
        bitmapInfo: CGBitmapInfo, provider: CGDataProvider, decode: UnsafePointer<CGFloat>?, shouldInterpolate: Bool,
        intent: CGColorRenderingIntent
    ) {
        guard provider.data.count == bytesPerRow * height else { return nil }
        (pixels, self.width, self.height) = ([UInt8](provider.data), width, height)
    }
}

public enum CGColorRenderingIntent { case defaultIntent }

public enum CGImageAlphaInfo: UInt32 { case premultipliedLast = 1, noneSkipLast = 5 }

public struct CGBitmapInfo {
    public init(rawValue: UInt32) {}
}

public final class CGColorSpace {
    public static let sRGB: CFString = "sRGB"
    public init?(name: CFString) {}
}

public final class CGDataProvider {
    let data: Data
    public init?(data: CFData) { self.data = data as Data }
}

public final class CGContext {
    let bytes: UnsafeMutableRawPointer

    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) {
        guard let data else { return nil }
        bytes = data
    }

    public func draw(_ image: CGImage, in area: CGRect) {
        precondition(Int(area.width) == image.width && Int(area.height) == image.height)
        bytes.copyMemory(from: image.pixels, byteCount: image.pixels.count)
    }
}

extension NSData {
    public enum CompressionAlgorithm { case zlib }

    public func decompressed(using: CompressionAlgorithm) throws -> NSData {
        throw CocoaError(.featureUnsupported)  // the tests give golden vectors that are not compressed
    }
}
