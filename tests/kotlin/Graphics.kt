package android.graphics

import android.content.ContentResolver
import android.net.Uri

class Bitmap(private val pixels: IntArray, val width: Int, val height: Int, val config: Config) {
    enum class Config { ARGB_8888, HARDWARE }

    fun copy(config: Config, isMutable: Boolean) = Bitmap(pixels.copyOf(), width, height, config)

    fun getPixels(out: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int) {
        check(config != Config.HARDWARE) { "unable to getPixels(), pixel access is not supported on Config#HARDWARE bitmaps" }
        for (row in 0 until height) {
            pixels.copyInto(out, offset + row * stride, (y + row) * this.width + x, (y + row) * this.width + x + width)
        }
    }

    companion object {
        @JvmStatic
        fun createBitmap(pixels: IntArray, width: Int, height: Int, config: Config) =
            Bitmap(pixels, width, height, config)
    }
}

class ImageDecoder {
    var allocator = 0

    class ImageInfo

    class Source

    companion object {
        const val ALLOCATOR_SOFTWARE = 1

        @JvmStatic
        fun createSource(resolver: ContentResolver, uri: Uri) = Source()

        @JvmStatic
        fun decodeBitmap(source: Source, listener: (ImageDecoder, ImageInfo, Source) -> Unit): Bitmap =
            throw UnsupportedOperationException("the tests have no photograph behind a Uri")
    }
}
