// What PocketSam.swift uses of Image I/O: the tests have no photographs in files.

@_exported import CoreGraphics

public final class CGImageSource {}

public let kCGImagePropertyPixelWidth: CFString = "PixelWidth"
public let kCGImagePropertyPixelHeight: CFString = "PixelHeight"
public let kCGImageSourceCreateThumbnailFromImageAlways: CFString = "Always"
public let kCGImageSourceCreateThumbnailWithTransform: CFString = "WithTransform"
public let kCGImageSourceThumbnailMaxPixelSize: CFString = "MaxPixelSize"

public func CGImageSourceCreateWithURL(_ url: CFURL, _ options: CFDictionary?) -> CGImageSource? { nil }

public func CGImageSourceCopyPropertiesAtIndex(
    _ source: CGImageSource, _ index: Int, _ options: CFDictionary?
) -> CFDictionary? { nil }

public func CGImageSourceCreateThumbnailAtIndex(
    _ source: CGImageSource, _ index: Int, _ options: CFDictionary
) -> CGImage? { nil }
