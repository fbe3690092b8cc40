// Made by pocketsam for this bundle: $checkpoint, $precision, canvas $size x $size, up to $points points.
// Encode a picture once, then ask for masks as often as you like; docs/android.md leads from nothing to a
// mask on the screen. Its arithmetic runs in pocketsam's tests on a JVM, with these files in LiteRT;
// selfCheck() says whether a phone computes the same. Inputs and outputs are float32 in every precision.

import android.content.Context
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.FileInputStream
import java.io.InputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.nio.FloatBuffer
import java.nio.channels.FileChannel
import java.util.zip.ZipInputStream
import kotlin.math.abs
import kotlin.math.ceil
import kotlin.math.log10
import org.tensorflow.lite.Interpreter

class PocketSam(encoderModel: ByteBuffer, decoderModel: ByteBuffer, threads: Int = 4) : AutoCloseable {
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
        const val LEAST_SNR = $least_snr        // dB that selfCheck wants, beside PyTorch
        const val LEAST_IOU = $least_iou        // mean mask IoU that selfCheck wants, beside PyTorch
        private val MEAN = floatArrayOf($mean_kt)
        private val DEVIATION = floatArrayOf($std_kt)
        private const val BITS = 22     // of a weight's fraction, as Pillow has for pictures of 8 bits
        private const val SMALL = 0.02  // share of a mask below which its IoU says nothing
        private const val STRIP = 1 shl 20  // pixels that are copied out of a bitmap at a time

        /** Opens encoder.tflite and decoder.tflite in app/src/main/assets. Takes a while: not on the main thread. */
        fun fromAssets(context: Context, threads: Int = 4): PocketSam {
            fun map(name: String): ByteBuffer {
                val file = context.assets.openFd(name)  // fails if the file is compressed in the app
                FileInputStream(file.fileDescriptor).channel.use {
                    return it.map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
                }
            }
            return PocketSam(map("encoder.tflite"), map("decoder.tflite"), threads)
        }

        /** Opens files, for example ones that the app has downloaded. */
        fun fromFiles(encoder: File, decoder: File, threads: Int = 4): PocketSam {
            fun map(file: File): ByteBuffer =
                FileInputStream(file).channel.use { it.map(FileChannel.MapMode.READ_ONLY, 0, it.size()) }
            return PocketSam(map(encoder), map(decoder), threads)
        }

        /** Reads a photograph, turned as its EXIF says, in memory that getPixels can read. Android 9 or newer. */
        fun readPhoto(context: Context, uri: Uri): Bitmap =
            ImageDecoder.decodeBitmap(ImageDecoder.createSource(context.contentResolver, uri)) { decoder, _, _ ->
                decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE
            }

        private fun floats(count: Int): FloatBuffer =
            ByteBuffer.allocateDirect(4 * count).order(ByteOrder.nativeOrder()).asFloatBuffer()
    }

    private val options = Interpreter.Options().apply { numThreads = threads }
    private val encoder = Interpreter(encoderModel, options)
    private val decoder = Interpreter(decoderModel, options)

    /** What the decoder needs of a picture: values [1, CELLS, CELLS, 256], and the picture's size. */
    class Embedding(val values: FloatBuffer, val width: Int, val height: Int) {
        internal val resized = resizedSize(width, height)
    }

    class Point(val x: Float, val y: Float, val label: Float = FOREGROUND)

    /**
     * Masks of a prompt as logits [4][LOW * LOW], with the IoU that the network expects of each.
     * 0 is the single mask, 1 to 3 are whole, part and subpart; above $threshold is the object.
     * best is the one to show: of a single click or a box the best of three, otherwise mask 0.
     */
    class Answer(val logits: Array<FloatArray>, val scores: FloatArray, val best: Int)

    /** One golden prompt: how near this phone is to PyTorch's answer. */
    class Check(val prompt: String, val snr: Double, val maskIou: Double) {
        val isRight get() = snr >= LEAST_SNR && maskIou >= LEAST_IOU
    }

    /** The heavy network: once per picture, not on the main thread. */
    fun encode(picture: Bitmap): Embedding {
        val readable = if (picture.config == Bitmap.Config.HARDWARE) {
            picture.copy(Bitmap.Config.ARGB_8888, false)
        } else {
            picture
        }
        val (width, height) = resizedSize(picture.width, picture.height)
        val rows = ByteArray(3 * width * picture.height)
        val step = maxOf(1, STRIP / picture.width)
        val strip = IntArray(picture.width * minOf(step, picture.height))
        val across = Taps(picture.width, width)
        for (top in 0 until picture.height step step) {
            val count = minOf(step, picture.height - top)
            readable.getPixels(strip, 0, picture.width, 0, top, picture.width, count)
            for (row in 0 until count) scaleRow(strip, row * picture.width, across, rows, 3 * width * (top + row))
        }
        return encode(scaleColumns(rows, width, picture.height, height), picture.width, picture.height)
    }

    /** Encodes RGB bytes that are scaled already; width and height are the original picture's. */
    private fun encode(rgb: ByteArray, width: Int, height: Int): Embedding {
        var zero = 0f
        var range = 1f
        if (STRETCH) {
            zero = rgb.fold(255) { least, value -> minOf(least, value.toInt() and 255) }.toFloat()
            range = maxOf(rgb.fold(0) { most, value -> maxOf(most, value.toInt() and 255) } - zero, 1e-8f)
        }
        val (w, h) = resizedSize(width, height)
        val input = floats(3 * SIDE * SIDE)  // zeros: SAM pads after normalising
        for (y in 0 until h) {
            for (i in 0 until 3 * w) {
                val value = ((rgb[3 * w * y + i].toInt() and 255) - zero) / range
                input.put(3 * SIDE * y + i, (value - MEAN[i % 3]) / DEVIATION[i % 3])
            }
        }
        val values = floats(CELLS * CELLS * 256)
        val inputs = mapOf<String, Any>("$pixel_values" to input)
        val outputs = mapOf<String, Any>("$image_embeddings" to values)
        synchronized(encoder) { encoder.runSignature(inputs, outputs, "$signature") }
        return Embedding(values, width, height)
    }

    /**
     * Masks for points and at most one box (x0, y0, x1, y1), in pixels of the original picture. A box is cut off at its edges.
     *
     * refine: logits [LOW * LOW] of an earlier answer, which the next one starts from.
     */
    fun predict(
        embedding: Embedding,
        points: List<Point>,
        box: FloatArray? = null,
        refine: FloatArray? = null
    ): Answer {
        val right = embedding.width.toFloat()
        val bottom = embedding.height.toFloat()
        for (point in points) {
            require(point.x in 0f..right && point.y in 0f..bottom) {
                "a point lies outside the picture: $${point.x}, $${point.y}"
            }
        }
        require(refine == null || refine.size == LOW * LOW) {
            "refine takes $${LOW * LOW} logits of an earlier answer"
        }
        val all = points.toMutableList()
        if (box != null) {
            val (x0, x1) = listOf(box[0], box[2]).map { it.coerceIn(0f, right) }
            val (y0, y1) = listOf(box[1], box[3]).map { it.coerceIn(0f, bottom) }
            require(x0 < x1 && y0 < y1) { "the box holds nothing of the picture, or its corners are reversed" }
            all.add(Point(x0, y0, BOX_FIRST))
            all.add(Point(x1, y1, BOX_SECOND))
        } else if (points.isNotEmpty()) {
            all.add(Point(0f, 0f, PAD))
        }
        require(all.size <= MAX_POINTS) { "this decoder takes $$MAX_POINTS points, a box is two" }
        val coords = floats(PROMPTS * MAX_POINTS * 2)
        val labels = floats(PROMPTS * MAX_POINTS)
        for (i in 0 until PROMPTS * MAX_POINTS) labels.put(i, if (i < all.size) all[i].label else PADDING)
        val (w, h) = embedding.resized
        all.forEachIndexed { i, point ->
            coords.put(2 * i, (point.x * (w.toDouble() / embedding.width)).toFloat())
            coords.put(2 * i + 1, (point.y * (h.toDouble() / embedding.height)).toFloat())
        }
        val mask = floats(LOW * LOW)
        val hasMask = floats(1)
        if (refine != null) {
            mask.put(refine)
            mask.rewind()
            hasMask.put(0, 1f)
        }
        val low = floats(PROMPTS * 4 * LOW * LOW)
        val scores = floats(PROMPTS * 4)
        val inputs = mapOf<String, Any>(
            "$image_embeddings" to embedding.values,
            "$point_coords" to coords,
            "$point_labels" to labels,
            "$mask_input" to mask,
            "$has_mask_input" to hasMask
        )
        val outputs = mapOf<String, Any>("$low_res_masks" to low, "$iou_predictions" to scores)
        synchronized(decoder) {  // of two quick taps, one after the other: an Interpreter has one thread
            embedding.values.rewind()
            decoder.runSignature(inputs, outputs, "$signature")
        }
        val logits = Array(4) { k -> FloatArray(LOW * LOW) { low.get(k * LOW * LOW + it) } }
        val ious = FloatArray(4) { scores.get(it) }
        val likely = (1..3).reduce { best, k -> if (ious[k] > ious[best]) k else best }
        return Answer(logits, ious, if (all.size < 3) likely else 0)
    }

    /** The mask of logits at the original picture's size, row by row: SAM's two bilinear steps. */
    fun mask(embedding: Embedding, logits: FloatArray): BooleanArray {
        val (w, h) = embedding.resized
        val rows = Upscaling(h, embedding.height)
        val columns = Upscaling(w, embedding.width)
        val out = BooleanArray(embedding.width * embedding.height)
        val row = FloatArray(LOW)
        for (y in 0 until embedding.height) {
            for (x in 0 until LOW) {
                row[x] = rows.sum(y) { logits[it * LOW + x] }
            }
            for (x in 0 until embedding.width) {
                out[y * embedding.width + x] = columns.sum(x) { row[it] } > $threshold
            }
        }
        return out
    }

    /** A mask in a colour (ARGB), transparent elsewhere: draw it over the picture. */
    fun maskBitmap(embedding: Embedding, logits: FloatArray, colour: Int = 0x803D5AFE.toInt()): Bitmap {
        val mask = mask(embedding, logits)
        val pixels = IntArray(mask.size) { if (mask[it]) colour else 0 }
        return Bitmap.createBitmap(pixels, embedding.width, embedding.height, Bitmap.Config.ARGB_8888)
    }

    /** Answers the prompts in golden.npz (copy it to the assets too), and compares with PyTorch's answers. */
    fun selfCheck(golden: InputStream): List<Check> {
        val arrays = readNpz(golden)
        val image = arrays.getValue("image")
        val (height, width) = image.shape
        val (w, h) = resizedSize(width, height)
        val pixels = IntArray(width * height) {
            (image.values[3 * it].toInt() shl 16) or (image.values[3 * it + 1].toInt() shl 8) or
                image.values[3 * it + 2].toInt() or (255 shl 24)
        }
        val rows = ByteArray(3 * w * height)
        val across = Taps(width, w)
        for (y in 0 until height) scaleRow(pixels, y * width, across, rows, 3 * w * y)
        val embedding = encode(scaleColumns(rows, w, height, h), width, height)
        return listOf("point", "box", "points", "refine").map { name ->
            fun numbers(key: String) = arrays["$${name}_$$key"]?.values
            val coords = numbers("point_coords") ?: FloatArray(0)
            val labels = numbers("point_labels") ?: FloatArray(0)
            val points = labels.indices.map { Point(coords[2 * it], coords[2 * it + 1], labels[it]) }
            val answer = predict(embedding, points, numbers("boxes"), numbers("mask_inputs"))
            compare(name, arrays.getValue("$${name}_low_res_masks"), answer)
        }
    }

    override fun close() {
        encoder.close()
        decoder.close()
    }

    /** Weights of an antialiased bilinear filter in fixed point, as Pillow computes them. */
    private class Taps(inputs: Int, val outputs: Int) {
        private val scale = inputs.toDouble() / outputs
        private val support = maxOf(scale, 1.0)
        val size = 2 * ceil(support).toInt() + 1
        val first = IntArray(outputs)
        val count = IntArray(outputs)
        val weights = IntArray(outputs * size)

        init {
            for (i in 0 until outputs) {
                val centre = (i + 0.5) * scale
                first[i] = maxOf((centre - support + 0.5).toInt(), 0)
                count[i] = minOf((centre + support + 0.5).toInt(), inputs) - first[i]
                val values = DoubleArray(count[i]) {
                    maxOf(1 - abs((it + first[i] - centre + 0.5) * (1 / support)), 0.0)
                }
                val sum = values.sum()
                for (k in values.indices) weights[i * size + k] = (0.5 + values[k] / sum * (1 shl BITS)).toInt()
            }
        }
    }

    private fun scaleRow(pixels: IntArray, start: Int, taps: Taps, out: ByteArray, to: Int) {
        for (x in 0 until taps.outputs) {
            val sums = intArrayOf(1 shl (BITS - 1), 1 shl (BITS - 1), 1 shl (BITS - 1))
            for (k in 0 until taps.count[x]) {
                val pixel = pixels[start + taps.first[x] + k]
                val alpha = pixel ushr 24
                for (channel in 0 until 3) {
                    var value = (pixel shr (16 - 8 * channel)) and 255
                    if (alpha < 255) value = (value * alpha + 255 * (255 - alpha) + 127) / 255  // over white
                    sums[channel] += value * taps.weights[x * taps.size + k]
                }
            }
            for (channel in 0 until 3) out[to + 3 * x + channel] = (sums[channel] shr BITS).toByte()
        }
    }

    private fun scaleColumns(rgb: ByteArray, width: Int, height: Int, outHeight: Int): ByteArray {
        if (height == outHeight) return rgb
        val taps = Taps(height, outHeight)
        val line = 3 * width
        return ByteArray(line * outHeight) {
            val y = it / line
            var sum = 1 shl (BITS - 1)
            for (k in 0 until taps.count[y]) {
                val value = rgb[(taps.first[y] + k) * line + it % line].toInt() and 255
                sum += value * taps.weights[y * taps.size + k]
            }
            (sum shr BITS).toByte()
        }
    }

    /** An axis of logits scaled to the canvas, cropped to the picture, and scaled to its size. */
    private class Upscaling(resized: Int, size: Int) {
        private val cells = IntArray(4 * size)
        private val weights = FloatArray(4 * size)

        init {
            for (i in 0 until size) {
                val (pixel, share) = place(i, resized, size)
                for (side in 0..1) {
                    val (cell, inside) = place(minOf(pixel + side, resized - 1), LOW, SIDE)
                    val part = if (side == 1) share else 1 - share
                    cells[4 * i + 2 * side] = cell
                    cells[4 * i + 2 * side + 1] = minOf(cell + 1, LOW - 1)
                    weights[4 * i + 2 * side] = part * (1 - inside)
                    weights[4 * i + 2 * side + 1] = part * inside
                }
            }
        }

        private fun place(i: Int, inputs: Int, outputs: Int): Pair<Int, Float> {
            val centre = maxOf((i + 0.5f) * (inputs.toFloat() / outputs) - 0.5f, 0f)
            val first = minOf(centre.toInt(), inputs - 1)
            return Pair(first, centre - first)
        }

        inline fun sum(i: Int, value: (Int) -> Float): Float {
            var total = 0f
            for (k in 4 * i until 4 * i + 4) total += weights[k] * value(cells[k])
            return total
        }
    }

    private class NumpyArray(val shape: List<Int>, val values: FloatArray)

    private fun readNpz(stream: InputStream): Map<String, NumpyArray> {
        val arrays = mutableMapOf<String, NumpyArray>()
        ZipInputStream(stream).use { zip ->
            while (true) {
                val entry = zip.nextEntry ?: break
                val out = ByteArrayOutputStream()
                zip.copyTo(out)
                arrays[entry.name.removeSuffix(".npy")] = readNpy(ByteBuffer.wrap(out.toByteArray())) ?: continue
            }
        }
        return arrays
    }

    /** Returns an array of uint8 or float32; null for another type. */
    private fun readNpy(bytes: ByteBuffer): NumpyArray? {
        bytes.order(ByteOrder.LITTLE_ENDIAN)
        val length = bytes.getShort(8).toInt() and 0xffff
        val header = String(bytes.array(), 10, length)
        val shape = header.substringAfter("'shape': (").substringBefore(")").split(",")
            .filter { it.isNotBlank() }.map { it.trim().toInt() }
        val count = shape.fold(1) { product, n -> product * n }
        val start = 10 + length
        val values = when {
            "'|u1'" in header -> FloatArray(count) { (bytes.get(start + it).toInt() and 255).toFloat() }
            "'<f4'" in header -> FloatArray(count) { bytes.getFloat(start + 4 * it) }
            else -> return null
        }
        return NumpyArray(shape, values)
    }

    private fun compare(name: String, expected: NumpyArray, answer: Answer): Check {
        val side = expected.shape[2]
        val step = (LOW + side - 1) / side  // the bundle keeps every n-th row and column
        var signal = 0.0
        var noise = 0.0
        val ious = (0 until 4).mapNotNull { k ->
            var size = 0
            var common = 0
            var either = 0
            for (i in 0 until side * side) {
                val wanted = expected.values[k * side * side + i]
                val found = answer.logits[k][i / side * step * LOW + i % side * step]
                signal += wanted.toDouble() * wanted
                noise += (wanted - found).toDouble() * (wanted - found)
                if (wanted > $threshold) size++
                if (wanted > $threshold && found > $threshold) common++
                if (wanted > $threshold || found > $threshold) either++
            }
            if (size < SMALL * side * side) null else common.toDouble() / either
        }
        val iou = if (ious.isEmpty()) 1.0 else ious.average()
        return Check(name, if (noise == 0.0) 200.0 else 10 * log10(signal / noise), iou)
    }
}

/** The size of a picture on the canvas: its longest side becomes SIDE. */
internal fun resizedSize(width: Int, height: Int): Pair<Int, Int> {
    val scale = PocketSam.SIDE.toDouble() / maxOf(width, height)
    return Pair(maxOf(1, (width * scale + 0.5).toInt()), maxOf(1, (height * scale + 0.5).toInt()))
}
