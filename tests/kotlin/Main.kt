// Runs PocketSam.kt on pixels out of a file, and writes its masks beside it.

import android.content.Context
import android.graphics.Bitmap
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

fun main(arguments: Array<String>) {
    val folder = File(arguments[0])
    val sam = PocketSam.fromAssets(Context(folder))
    for (check in sam.selfCheck(File(folder, "golden.npz").inputStream())) {
        println("check ${check.prompt} ${check.snr} ${check.maskIou} ${check.isRight}")
    }
    for (photo in arguments.drop(1)) segment(sam, File(photo))
    sam.close()
}

/** A file of two int32, width and height, and the pixels as ARGB. */
fun segment(sam: PocketSam, photo: File) {
    val ints = ByteBuffer.wrap(photo.readBytes()).order(ByteOrder.LITTLE_ENDIAN).asIntBuffer()
    val (width, height) = Pair(ints.get(), ints.get())
    val pixels = IntArray(width * height).also { ints.get(it) }
    val embedding = sam.encode(Bitmap(pixels, width, height, Bitmap.Config.HARDWARE))
    val middle = PocketSam.Point(width / 2f, height / 2f)
    val corner = PocketSam.Point(width * 0.1f, height * 0.1f, PocketSam.BACKGROUND)
    val box = floatArrayOf(width * 0.2f, height * 0.2f, width * 0.8f, height * 0.9f)
    val first = sam.predict(embedding, listOf(middle))
    val answers = mapOf(
        "click" to first,
        "clicks" to sam.predict(embedding, listOf(middle, corner)),
        "box" to sam.predict(embedding, emptyList(), box),
        "both" to sam.predict(embedding, listOf(middle), box),
        "edge" to sam.predict(embedding, emptyList(), floatArrayOf(-30f, -20f, width * 0.5f, height + 40f)),
        "refine" to sam.predict(embedding, listOf(middle), null, first.logits[first.best])
    )
    for ((name, answer) in answers) {
        val mask = sam.mask(embedding, answer.logits[answer.best])
        File("${photo.path}.$name").writeBytes(ByteArray(mask.size) { if (mask[it]) 1 else 0 })
        println("mask ${photo.name} $name ${answer.best} ${answer.scores.joinToString(" ")}")
    }
    val refused = listOf<() -> Any>(
        { sam.predict(embedding, listOf(middle), null, FloatArray(4)) },
        { sam.predict(embedding, listOf(PocketSam.Point(width + 1f, 0f))) },
        { sam.predict(embedding, listOf(PocketSam.Point(Float.NaN, 0f))) },
        { sam.predict(embedding, emptyList(), floatArrayOf(9f, 9f, 5f, 20f)) },
        { sam.predict(embedding, emptyList(), floatArrayOf(-9f, 0f, -1f, 20f)) }
    )
    for (each in refused) check(runCatching { each() }.exceptionOrNull() is IllegalArgumentException)
    val drawn = sam.maskBitmap(embedding, first.logits[first.best], 0x11223344)
    check(drawn.width == width && drawn.height == height)
}
