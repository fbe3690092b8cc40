// Made by pocketsam for this bundle: $checkpoint, $precision, canvas $size x $size, up to $points points.
// Encode a picture once, then ask for masks as often as you like. Untested on a device by pocketsam;
// golden.npz and manifest.json say what the numbers should be.

import android.graphics.Bitmap
import java.io.File
import org.tensorflow.lite.Interpreter

class PocketSam(encoderFile: File, decoderFile: File, threads: Int = 4) : AutoCloseable {
    companion object {
        const val SIDE = $size          // the canvas
        const val LOW = $low            // side of the low-resolution masks
        const val CELLS = $cells        // side of the embedding
        const val MAX_POINTS = $points      // points of a prompt, padding included
        const val PROMPTS = $prompts       // that a call answers; the first is used here
        const val BACKGROUND = 0f
        const val FOREGROUND = 1f
        const val BOX_FIRST = 2f
        const val BOX_SECOND = 3f
        const val PAD = -1f             // SAM's own: one, wherever there are points but no box
        const val PADDING = -2f          // fills a prompt up to MAX_POINTS
        const val STRETCH = $stretch  // whether a picture's least and greatest value become 0 and 1 first
        private val MEAN = floatArrayOf($mean_kt)
        private val DEVIATION = floatArrayOf($std_kt)
    }

    private val options = Interpreter.Options().apply { numThreads = threads }
    private val encoder = Interpreter(encoderFile, options)
    private val decoder = Interpreter(decoderFile, options)

    /** What the decoder needs of a picture; [values] is [1][CELLS][CELLS][256]. */
    class Embedding(
        val values: Array<Array<Array<FloatArray>>>,
        val width: Int,
        val height: Int,
        val scale: Float,
    )

    class Point(val x: Float, val y: Float, val label: Float)

    /** The heavy network: once per picture. Longest side to SIDE, top left, zeros after normalising. */
    fun encode(picture: Bitmap): Embedding {
        val ratio = SIDE.toDouble() / maxOf(picture.width, picture.height)
        val width = maxOf(1, (picture.width * ratio + 0.5).toInt())
        val height = maxOf(1, (picture.height * ratio + 0.5).toInt())
        val small = Bitmap.createScaledBitmap(picture, width, height, true)
        val pixels = IntArray(width * height)
        small.getPixels(pixels, 0, width, 0, 0, width, height)
        fun value(pixel: Int, channel: Int) = ((pixel shr (16 - 8 * channel)) and 0xff).toFloat()
        var least = 255f
        var greatest = 0f
        for (pixel in pixels) {
            for (channel in 0 until 3) {
                least = minOf(least, value(pixel, channel))
                greatest = maxOf(greatest, value(pixel, channel))
            }
        }
        val (zero, range) = if (STRETCH) Pair(least, maxOf(greatest - least, 1e-8f)) else Pair(0f, 1f)
        val input = Array(1) { Array(SIDE) { Array(SIDE) { FloatArray(3) } } }
        for (y in 0 until height) {
            for (x in 0 until width) {
                val pixel = pixels[y * width + x]
                for (channel in 0 until 3) {
                    val stretched = (value(pixel, channel) - zero) / range
                    input[0][y][x][channel] = (stretched - MEAN[channel]) / DEVIATION[channel]
                }
            }
        }
        val values = Array(1) { Array(CELLS) { Array(CELLS) { FloatArray(256) } } }
        val inputs = mapOf<String, Any>("$pixel_values" to input)
        encoder.runSignature(inputs, mapOf<String, Any>("$image_embeddings" to values), "$signature")
        return Embedding(values, picture.width, picture.height, ratio.toFloat())
    }

    /**
     * Masks for points and at most one box (x0, y0, x1, y1), in pixels of the original picture.
     *
     * Logits [4][LOW][LOW] and scores [4]: 0 is the single mask, 1 to 3 are whole, part and subpart;
     * take the one of 1 to 3 that scores highest. Above $threshold is the object.
     */
    fun predict(
        embedding: Embedding,
        points: List<Point>,
        box: FloatArray? = null,
        refine: Array<FloatArray>? = null,
    ): Pair<Array<Array<FloatArray>>, FloatArray> {
        val all = points.toMutableList()
        if (box != null) {
            all.add(Point(box[0], box[1], BOX_FIRST))
            all.add(Point(box[2], box[3], BOX_SECOND))
        } else if (points.isNotEmpty()) {
            all.add(Point(0f, 0f, PAD))
        }
        require(all.size <= MAX_POINTS) { "this decoder takes $$MAX_POINTS points" }
        val coords = Array(PROMPTS) { Array(MAX_POINTS) { FloatArray(2) } }
        val labels = Array(PROMPTS) { FloatArray(MAX_POINTS) { PADDING } }
        all.forEachIndexed { index, point ->
            coords[0][index][0] = point.x * embedding.scale
            coords[0][index][1] = point.y * embedding.scale
            labels[0][index] = point.label
        }
        val mask = Array(1) { Array(1) { refine ?: Array(LOW) { FloatArray(LOW) } } }
        val low = Array(PROMPTS) { Array(4) { Array(LOW) { FloatArray(LOW) } } }
        val scores = Array(PROMPTS) { FloatArray(4) }
        val inputs = mapOf<String, Any>(
            "$image_embeddings" to embedding.values,
            "$point_coords" to coords,
            "$point_labels" to labels,
            "$mask_input" to mask,
            "$has_mask_input" to floatArrayOf(if (refine == null) 0f else 1f),
        )
        val outputs = mapOf<String, Any>("$low_res_masks" to low, "$iou_predictions" to scores)
        decoder.runSignature(inputs, outputs, "$signature")
        return Pair(low[0], scores[0])
    }

    /** Whether a pixel of the original picture belongs to the object: bilinear between logits. */
    fun contains(logits: Array<FloatArray>, embedding: Embedding, x: Int, y: Int): Boolean {
        fun place(value: Int) = maxOf(0f, (value + 0.5f) * embedding.scale * LOW / SIDE - 0.5f)
        val px = place(x)
        val py = place(y)
        val x0 = minOf(px.toInt(), LOW - 1)
        val y0 = minOf(py.toInt(), LOW - 1)
        val x1 = minOf(x0 + 1, LOW - 1)
        val y1 = minOf(y0 + 1, LOW - 1)
        val top = logits[y0][x0] * (1 - (px - x0)) + logits[y0][x1] * (px - x0)
        val bottom = logits[y1][x0] * (1 - (px - x0)) + logits[y1][x1] * (px - x0)
        return top * (1 - (py - y0)) + bottom * (py - y0) > $threshold
    }

    override fun close() {
        encoder.close()
        decoder.close()
    }
}
